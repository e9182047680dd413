"""What a program will need on a machine that is not there: memory, operations, bytes, collectives, time."""
