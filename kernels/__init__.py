"""Arrays in, arrays out. This room knows blocks, tables and scales; it knows no layer, no model and no file.

`reference.py` is the specification in plain torch and the path on CPUs; faster implementations stand beside it and must
agree with it bit for bit.
"""
