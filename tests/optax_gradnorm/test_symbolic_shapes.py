"""Export with symbolic shapes: one program for layers of any size gives what each size gives by itself."""
