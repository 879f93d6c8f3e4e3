    // The page's scripts: plain JavaScript in one scope, without a framework. Gradio only carries the calls.
    //   heat.js        draws the heat map over a picture
    //   files.js       reads, uploads and pastes files; the pictures of this tab
    //   viewer.js      shows one picture with its marks, zoom and heat map, and the thumbnails
    //   crop.js        crop and rotation by mouse, touch or keyboard
    //   prevalence.js  presets and sliders
    //   lesion.js      one lesion: calls the server, shows the answer
    //   recent.js      the last answers of this tab
    //   many.js        the table of many images: progress, sorting, filtering
    //   start.js       connects all of this to the page
    // No script stores anything or sends anything to another server.
    const find = (selector, within = document) => within.querySelector(selector);
    const all = (selector, within = document) => [...within.querySelectorAll(selector)];
    window.dermrw = {};
    // Gradio reloads the page, and with it all answers, if a call can't be sent. Try for half a minute before.
    const fetchOnce = window.fetch.bind(window), WAITS = [500, 1000, 2000, 4000, 8000, 16000];
    window.fetch = async (address, ...rest) => {
        const joins = !(address instanceof Request) && String(address).includes("gradio_api/queue/join");
        for (const wait of joins ? WAITS : []) {
            try {
                return await fetchOnce(address, ...rest);
            } catch {
                await new Promise((resolve) => { setTimeout(resolve, wait); });
            }
        }
        return fetchOnce(address, ...rest);
    };
    // Writes a line of status; `retry` is offered as a button.
    const showStatus = (line, text, retry) => {
        line.textContent = text;
        line.hidden = !text;
        if (!retry) return;
        const button = document.createElement("button");
        [button.type, button.className, button.textContent] = ["button", "button", "Try again"];
        button.onclick = retry;
        line.append(" ", button);
        if (document.activeElement === document.body) button.focus({ preventScroll: true });
    };
    // Returns the result that Gradio put into its hidden component, as inert elements; null if there is none.
    const carried = (raw) => {
        const box = find("[data-html]", raw), template = document.createElement("template");
        if (!box) return null;
        template.innerHTML = box.dataset.html;
        return template.content;
    };
