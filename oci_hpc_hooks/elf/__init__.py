"""What ELF files say, the loader cache read and written, ld.so's search simulated: given files, no policy."""
