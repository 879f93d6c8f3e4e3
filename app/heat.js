    // --- heat.js ---
    const SMOOTH = 160;  // pixels of a drawn heat map's longer side; the browser enlarges it

    // Returns a row-major map enlarged along one axis by cubic convolution, as Pillow's BICUBIC filter does.
    const cubic = (values, from, to, read, write) => {
        const kernel = (x) => {
            const t = Math.abs(x);
            return t < 1 ? (1.5 * t - 2.5) * t * t + 1 : t < 2 ? ((-0.5 * t + 2.5) * t - 4) * t + 2 : 0;
        };
        for (let i = 0; i < to; i++) {
            const centre = (i + 0.5) * from / to - 0.5, weights = [];
            for (let j = Math.max(0, Math.floor(centre) - 1); j <= Math.min(from - 1, Math.floor(centre) + 2); j++) {
                weights.push([j, kernel(centre - j)]);
            }
            const sum = weights.reduce((total, [, weight]) => total + weight, 0);
            write(i, weights.map(([j, weight]) => [j, weight / sum]), read, values);
        }
    };

    // Returns the evidence for a class, 0…1, at width × height positions. `map`: shape and base64, as app/heatmap.py sends it.
    const evidence = (map, index, width, height) => {
        const [, h, w] = map.shape, bytes = atob(map.bytes).slice(index * h * w, (index + 1) * h * w);
        const wide = new Float32Array(h * width), full = new Float32Array(height * width);
        cubic(bytes, w, width, null, (x, weights) => {
            for (let y = 0; y < h; y++) {
                wide[y * width + x] = weights.reduce((sum, [j, weight]) => sum + weight * bytes.charCodeAt(y * w + j) / 255, 0);
            }
        });
        cubic(wide, h, height, null, (y, weights) => {
            for (let x = 0; x < width; x++) {
                const value = weights.reduce((sum, [j, weight]) => sum + weight * wide[j * width + x], 0);
                full[y * width + x] = Math.min(1, Math.max(0, value));
            }
        });
        return full;
    };

    const ramp = () => JSON.parse(find("#tool-box").dataset.ramp);

    // Returns the colour [r, g, b] of a value 0…1 on the scale.
    const colourOf = (colours, value) => {
        const position = value * (colours.length - 1), low = Math.min(colours.length - 2, Math.floor(position));
        return colours[low].map((part, c) => part + (position - low) * (colours[low + 1][c] - part));
    };

    // Draws the heat map of a class on a canvas: opaque where the evidence is maximal, transparent where there is none.
    const drawHeat = (canvas, map, index, ratio) => {
        canvas.width = Math.round(SMOOTH * Math.min(1, ratio));
        canvas.height = Math.round(SMOOTH / Math.max(1, ratio));
        const context = canvas.getContext("2d"), image = context.createImageData(canvas.width, canvas.height), colours = ramp();
        evidence(map, index, canvas.width, canvas.height).forEach((value, i) => {
            image.data.set([...colourOf(colours, value), 255 * value], 4 * i);
        });
        context.putImageData(image, 0, 0);
    };

    // Returns the scale as a CSS gradient with the colours and the transparency of the heat map.
    const scaleGradient = (opacity) => {
        const steps = [...Array(9).keys()].map((i) => i / 8);
        const colours = steps.map((value) => `rgba(${colourOf(ramp(), value).map(Math.round)}, ${value * opacity})`);
        return `linear-gradient(to right, ${colours})`;
    };
