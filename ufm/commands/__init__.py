"""The commands, one module each: a frozen dataclass whose docstring and fields are the help.

The method `act()` of a command computes, prints and returns the exit status; it raises
`ufm.Refused` to refuse its input. To add a command, write `ufm/commands/NAME.py`, and list its
class in `ufm.commands.menu.Command`.
"""
