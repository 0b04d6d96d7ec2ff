"""What boot asks before it migrates, in the order of cost, and the flag that spares it the questions."""
