"""How programs run: blocks of samples, threads, processes, room for programs, interrupts."""
