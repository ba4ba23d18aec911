"""The page's look and behaviour in the browser: styles, scripts, the badge."""
