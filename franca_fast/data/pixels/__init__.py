"""How the bytes of a file become pixels: formats, levels, orientation."""
