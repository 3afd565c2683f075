"""What goes wrong in a round, each by its own type."""


class ProtocolError(Exception):
    """A round, or one party's part in it, that cannot go on.

    The party that raises it has sent nothing in answer. Errors of the program, such as
    a vector of another length than the plan's, are `ValueError`s instead.
    """


class MalformedMessageError(ProtocolError):
    """Bytes that are no message: cut off, too long, or with entries out of range."""


class WrongMessageError(ProtocolError):
    """A message of another round, step, sender or receiver than the one expected."""


class WrongStepError(ProtocolError):
    """A step out of order, a second time, or after a refusal."""


class NotAuthenticError(ProtocolError):
    """A signature, an envelope or a public key that does not hold."""


class ContradictionError(ProtocolError):
    """A list that contradicts the plan, itself, or what the party saw before.

    Also a plan that is not as demanded, and a share that is not as it was dealt.
    """


class TooFewClientsError(ProtocolError):
    """Fewer clients than the plan's threshold or quorum are left."""


class RecoveryError(ProtocolError):
    """Shares of a secret that, though enough, give another than the one announced.

    Its owner shared what it didn't announce: `Server.accused` names it.
    """
