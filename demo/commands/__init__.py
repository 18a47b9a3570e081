"""The commands of `tresse`: talking, making, measuring. Importing them imports neither torch nor gradio."""
