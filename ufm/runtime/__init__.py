"""How programs run: blocks of samples, threads, processes, compiled programs, interrupts."""
