const price = 120
