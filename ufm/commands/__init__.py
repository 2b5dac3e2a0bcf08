"""One module a command: a frozen dataclass whose docstring and fields are the help.

A command offers `act()`, which computes, prints and returns the exit status; it raises
`ufm.Refused` to refuse its input. To add one, write `ufm/commands/NAME.py`, and name its
class in `ufm.commands.menu.Command`.
"""
