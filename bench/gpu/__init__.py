"""What a machine with a GPU is asked, part by part: `python -m bench.gpu`."""
