from fastsparse.engine.lanes import lanes_schedule
def flat_schedule(program, batch, machine):
    return lanes_schedule(program, batch, machine)
