"""What a GPU says of fastnn: stages in order of importance, within a time limit. See ``docs/gpu_day.md``.

Two kinds of process. The driver (``__main__``, ``day``, ``stages``, ``workers``, ``sanitizer``, ``process``,
``machine``, ``files``) imports neither torch nor fastnn: fastnn is not built when it starts, and it must live when a
kernel takes its process with it. The workers (``worker`` and what it names: ``small``, ``sizes``, ``graphs``,
``repeats``, ``memory``) look at one item after the other and keep a journal of it; what they run, and in which order,
is in ``subjects`` and ``plan``.
"""
