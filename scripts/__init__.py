"""What a checkout is worked on with: its commands, and the packages behind them."""
