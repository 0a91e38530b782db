"""The face in napari: panels, reader, writers, sample data.  The only floor that knows the viewer and Qt."""
