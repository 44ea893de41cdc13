class UserError(RuntimeError):
    """Something that was given is wrong. The message is one line: what, where, and what to do."""
