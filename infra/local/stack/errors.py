"""The one error of the local stack: something that the person who runs it can put right."""


class StackError(Exception):
    """The stack cannot be started or stopped; the message says what is wrong, what was seen, what to do."""
