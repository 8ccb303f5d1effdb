"""What lies between two processes: messages, frames and pipes, children, the clock."""
