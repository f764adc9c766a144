from typing_extensions import disjoint_base

from epollkit import _schedule

@disjoint_base
class Loop(_schedule.Loop): ...
