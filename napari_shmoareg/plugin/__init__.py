"""The face in napari: panels, reader, writers, sample data.  The only package that knows the viewer
and Qt.
"""
