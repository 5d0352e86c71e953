"""DICOM: a file's bytes as pictures, and what of its header may be told."""
