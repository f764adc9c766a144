"""`Token`, and the anchor that lets it outlive its loop."""
from epollkit._slots cimport Slot, slot_named
from epollkit._sys cimport EK_FREED_WITH, EK_MADE, EK_TOKEN

from epollkit.errors import UsageError


cdef class Anchor:
    pass


cdef class Token:
    """Names one registration for ever. Safe to keep: once the registration is gone, every use raises `StaleToken`."""

    def __cinit__(self):
        EK_MADE(EK_TOKEN)

    def __init__(self):
        raise UsageError("a Token comes from Loop.register() or an endpoint; it is not made by hand")

    @property
    def instance(self):
        """The generation's lowest bit: what nginx calls the instance."""
        return self.generation & 1

    @property
    def live(self):
        """Whether the registration still stands."""
        if self.anchor is None or self.anchor.slots == NULL:
            return False
        return slot_named(self.anchor.slots, self.index, self.generation) != NULL

    def __eq__(self, other):
        cdef Token token
        if not isinstance(other, Token):
            return NotImplemented
        token = other
        return self.anchor is token.anchor and self.index == token.index and self.generation == token.generation

    def __hash__(self):
        return hash((self.index, self.generation))

    def __repr__(self):
        return f"<Token index={self.index} generation={self.generation}{'' if self.live else ' stale'}>"


cdef Token make_token(Anchor anchor, const Slot *slot):
    cdef Token token = Token.__new__(Token)
    token.anchor = anchor
    token.index = slot.index
    token.generation = slot.generation
    return token


EK_FREED_WITH(Token, EK_TOKEN)
