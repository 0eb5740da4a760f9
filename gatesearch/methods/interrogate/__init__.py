"""InterroGate (`method`) and its one-shot form (`one_shot`), which trains one supernet for all."""
