"""One main per loop shape; the configs say what to run."""
