document.getElementById("price").textContent = `${price} cents`
