from typing import final

@final
class Tally:
    def __init__(self) -> None: ...
