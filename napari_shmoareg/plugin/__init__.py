"""The napari plugin: panels, reader, writers, sample data.  The only package that imports napari
and Qt.
"""
