"""What every layer may use: errors, requests, events and the clock. Standard library only."""
