"""The rehearsed world: crowds of buyers today, simulated zones and clouds behind the same ports later."""
