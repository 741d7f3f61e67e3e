"""Data sets: reading them, sharing them out to clients, and preparing them for a model.

`sources` reads, `partitions` shares out, `picture` shows who got what, `prepare` makes model inputs, and
`examples` is what training and evaluation see. Nothing is imported here, so that looking up a name costs no
heavy library.
"""
