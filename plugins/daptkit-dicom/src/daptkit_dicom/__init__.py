"""DICOM images as the file says they are shown."""
