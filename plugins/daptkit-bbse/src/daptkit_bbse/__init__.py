"""BBSE, RLLS and EM: correction of label shift."""
