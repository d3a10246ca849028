def forecast(config, target, arguments):
    return None
