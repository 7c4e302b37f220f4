"""Holds the report's style, and the script by which a touch shows a token's number."""

STYLE = """
:root{color-scheme:light dark;--page:#f4f5f7;--card:#fff;--text:#1d2127;--soft:#525a66;--line:#c9ced6;--blue:#0b5cad;
--orange:#b4520a;--bad:#a3260d}
@media(prefers-color-scheme:dark){:root{--page:#15181c;--card:#1e2228;--text:#e9ebee;--soft:#b0b7c1;--line:#444c57;
--blue:#8cc2f5;--orange:#f3a75c;--bad:#ff9d84}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--text);font:16px/1.55 system-ui,sans-serif}
main{max-width:72rem;margin:0 auto;padding:1rem clamp(.75rem,3vw,2rem) 4rem}
h1{font-size:1.5rem;overflow-wrap:anywhere}h2{font-size:1.2rem;margin-top:2rem}
dl{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(13rem,100%),1fr));gap:.6rem;margin:1rem 0}
dl div,figure,.row{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:.7rem .9rem}
dt{color:var(--soft)}dd{margin:0}dd b{font-size:1.4rem;font-variant-numeric:tabular-nums}
.figures{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(22rem,100%),1fr));gap:.8rem}
figure{margin:0}figcaption{font-weight:600}.keys{display:flex;flex-wrap:wrap;gap:0 1rem;font-weight:400}
.key::before{content:"";display:inline-block;width:.9em;height:.9em;margin-right:.4em;vertical-align:-.1em;
background:var(--blue)}.key-1::before{background:var(--orange)}
svg{display:block;width:100%;max-width:34rem;height:auto}
svg text{fill:var(--text);font-size:13px;font-variant-numeric:tabular-nums}
.grid{stroke:var(--line)}.axis{stroke:var(--soft);fill:none}
.line{fill:none;stroke:var(--blue);stroke-width:2.5}.dot{fill:var(--blue)}.band{fill:var(--blue);opacity:.18}
.reference{fill:none;stroke:var(--soft);stroke-dasharray:5 5}
.bars{fill-opacity:.28;stroke-width:2;fill:var(--blue);stroke:var(--blue)}
.bars-1{fill:var(--orange);stroke:var(--orange);stroke-dasharray:6 3}
.about{margin-bottom:.3rem}
.legend{display:flex;flex-wrap:wrap;gap:.2rem .6rem;align-items:center;position:sticky;top:0;background:var(--page);
padding:.5rem 0;margin:0;z-index:1}
.scale{width:9rem;height:1rem;border:1px solid var(--soft);border-radius:3px;
background:linear-gradient(to right,var(--low),var(--middle),var(--high))}
.row{margin:.8rem 0}
.row.wrong{border-left:5px solid var(--bad)}.row.right{border-left:5px solid var(--blue)}
h3{font-size:1rem;margin:0 0 .4rem}.verdict{font-weight:400;color:var(--soft)}.wrong .verdict{color:var(--bad)}
.turn{border-left:3px solid var(--line);padding-left:.7rem;margin:.4rem 0}.turn b{color:var(--soft);font-size:.85rem}
.turn p,.tokens{margin:0;white-space:pre-wrap;overflow-wrap:anywhere}
.texts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(20rem,100%),1fr));gap:.8rem;margin-top:.6rem}
.text{min-width:0}h4{font-size:.95rem;margin:0 0 .25rem}.score{font-variant-numeric:tabular-nums}
small{font-weight:400;color:var(--soft)}
.good h4{color:var(--blue)}.bad h4{color:var(--orange)}
.tokens{line-height:1.75}.tokens i{font-style:normal;color:var(--ink);padding:.12em 0}
#number{position:fixed;right:1rem;bottom:1rem;background:var(--text);color:var(--page);padding:.3rem .7rem;
border-radius:6px}#number:empty{display:none}
"""

SCRIPT = """
addEventListener("click",e=>{const t=e.target.closest(".tokens i");
document.getElementById("number").textContent=t?`${t.textContent.trim()} ${t.title}`:""})
"""
