"""What runs beside a run or a robot: servers."""
