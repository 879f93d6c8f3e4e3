() => {
    // pasted pictures go where dragged ones go
    addEventListener("paste", (event) => {
        const files = [...(event.clipboardData?.files ?? [])];
        const input = [...document.querySelectorAll("#upload input[type=file], #many input[type=file]")]
            .find((one) => one.closest("[role=tabpanel]")?.offsetParent !== null);
        if (!files.length || !input) return;
        const all = new DataTransfer();
        files.forEach((file) => all.items.add(file));
        input.files = all.files;
        input.dispatchEvent(new Event("change", { bubbles: true }));
    });
    // Gradio 6.31 forgets to translate this one
    const name = () => document.querySelectorAll("[aria-label='common.upload']").forEach((button) => {
        button.ariaLabel = button.title = "Add pictures";
    });
    new MutationObserver(name).observe(document.body, { childList: true, subtree: true });
}
