"""How the page looks and behaves in the browser: styles, scripts, the badge."""
