"""Seeing inside: how text is cut, what comes next, what each head looks at, how an answer grows."""
