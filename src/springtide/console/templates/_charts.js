(() => {
  const charts = JSON.parse(document.getElementById("chart-data").textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const narrow = matchMedia("(max-width: 760px)");
  const font = getComputedStyle(document.body).fontFamily;
  const draw = () => {
    const text = dark.matches ? "#aab2ba" : "#4c545c";
    const grid = dark.matches ? "#2d3238" : "#e8eaed";
    const card = dark.matches ? "#1c2024" : "#ffffff";
    charts.forEach((chart, at) => {
      const axis = { gridcolor: grid, linecolor: grid };
      Plotly.react("chart-" + at, chart.data, {
        ...chart.layout,
        xaxis: { ...chart.layout.xaxis, ...axis, showgrid: false, ticks: "outside", tickcolor: grid,
          tickangle: 0, nticks: narrow.matches ? 5 : chart.layout.xaxis.nticks },
        yaxis: { ...chart.layout.yaxis, ...axis },
        font: { family: font, size: 12, color: text },
        paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
        hovermode: "x unified", hoverlabel: { bgcolor: card, bordercolor: grid, font: { color: text } },
        legend: { orientation: "h", x: 0, xanchor: "left", y: -0.14, yanchor: "top", traceorder: "normal", font: { size: 12 } },
        margin: { l: 8, r: 12, t: 24, b: 8 },
        showlegend: !(narrow.matches && chart.layout.meta?.keyed), // keyed: a table of the page has the colours
      }, { displayModeBar: false, responsive: true });
    });
  };
  dark.addEventListener("change", draw);
  narrow.addEventListener("change", draw);
  draw();
})();
