"""Teachers' tensors into one buffer of rows, and views of a predicted buffer as a student's tensors."""
