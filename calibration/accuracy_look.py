"""Style and script of docs/accuracy.html, kept apart from what it says."""

STYLE = """
:root{--ink:#1f2933;--soft:#5f6b7a;--line:#d9dee5;--band:#f5f7fa;--mark:#0072b2}
*{box-sizing:border-box}
body{margin:0;display:flex;font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:#fff}
nav{flex:0 0 236px;height:100vh;position:sticky;top:0;overflow-y:auto;padding:18px 12px;background:var(--band);
border-right:1px solid var(--line);font-size:13px;line-height:1.35}
nav a{display:block;padding:3px 6px;color:var(--ink);text-decoration:none;border-radius:4px}
nav a:hover{background:#e4e9f0}
nav .l2{font-weight:600;margin-top:8px}
nav .l3{padding-left:16px;color:var(--soft)}
nav .l4{display:none}
main{flex:1;min-width:0;max-width:1240px;padding:8px 32px 80px}
h1{font-size:30px;margin:16px 0 4px}
h2{font-size:23px;margin:44px 0 8px;padding-bottom:4px;border-bottom:2px solid var(--line)}
h3{font-size:17px;margin:28px 0 6px}
p{max-width:860px;margin:8px 0 12px}
code{font:13px ui-monospace,monospace;background:var(--band);padding:1px 4px;border-radius:3px}
a{color:var(--mark)}
.table{overflow:auto;margin:6px 0 16px;border:1px solid var(--line);border-radius:6px;width:fit-content;max-width:100%}
.tall{max-height:440px}
table{border-collapse:collapse;font-size:13px;line-height:1.35;font-variant-numeric:tabular-nums}
th,td{padding:5px 10px;text-align:left;vertical-align:top;border-bottom:1px solid #eceff3;max-width:460px}
td.n,th.n{text-align:right}
td{white-space:nowrap}
td.w{white-space:normal;min-width:260px}
#cases td.w{min-width:0}
th{position:sticky;top:0;background:var(--band);font-weight:600;vertical-align:bottom;z-index:1}
th.sorts{cursor:pointer}
th.sorts:hover{color:var(--mark)}
th[aria-sort=ascending]::after{content:" \\25b2"}
th[aria-sort=descending]::after{content:" \\25bc"}
tbody tr:nth-child(even){background:#fafbfc}
tbody tr:hover{background:#eef5fb}
tr[hidden]{display:none}
tr.picked{background:#fff3cd!important}
#cases td{max-width:250px;white-space:nowrap}
.find{display:block;margin:10px 0 0;padding:4px 8px;border:1px solid var(--line);border-radius:4px;font-size:13px;
width:240px}
.choices{display:flex;flex-wrap:wrap;gap:10px;align-items:end;margin:8px 0}
.choices label{display:flex;flex-direction:column;font-size:12px;color:var(--soft)}
.choices select,.choices button{font-size:13px;padding:4px 6px;border:1px solid var(--line);border-radius:4px;
background:#fff;min-width:110px}
.choices button{min-width:0;padding:5px 12px;cursor:pointer}
.plot svg{display:block;width:100%;max-width:620px;height:auto}
circle[data-case]{cursor:pointer}
circle.off{display:none}
@media(max-width:900px){nav{display:none}main{padding:8px 14px 60px}}
@media print{nav,.find,.choices{display:none}.tall{max-height:none}}
"""

# Sorting, filtering and the choice of cases. Numbers are read from the text that is shown.
SCRIPT = """
(function(){
'use strict';
function value(text){
  var found=text.replace(/,/g,'').match(/^[+-]?\\d+(\\.\\d+)?(e-?\\d+)?/);
  return found?parseFloat(found[0]):null;
}
function key(row,at){var text=row.cells[at].textContent.trim();return {text:text,number:value(text)};}
function sort(table,at,down){
  var body=table.tBodies[0],rows=Array.prototype.slice.call(body.rows).map(function(row,i){
    return {row:row,key:key(row,at),place:i};});
  var empty=function(k){return k.text===''||k.text==='\\u2013';};
  var numeric=rows.every(function(r){return r.key.number!==null||empty(r.key);});
  rows.sort(function(a,b){
    if(empty(a.key)!==empty(b.key))return empty(a.key)?1:-1;
    var d=numeric?(a.key.number||0)-(b.key.number||0):a.key.text.localeCompare(b.key.text,'en',{numeric:true});
    return (down?-d:d)||a.place-b.place;});
  rows.forEach(function(r){body.appendChild(r.row);});
}
document.querySelectorAll('.table').forEach(function(box){
  var table=box.querySelector('table'),heads=table.tHead.rows[0].cells;
  if(table.tBodies[0].rows.length<2)return;
  Array.prototype.forEach.call(heads,function(head,at){
    head.className+=' sorts';head.title='sort';head.tabIndex=0;
    function turn(){
      var down=head.getAttribute('aria-sort')==='ascending';
      Array.prototype.forEach.call(heads,function(h){h.removeAttribute('aria-sort');});
      head.setAttribute('aria-sort',down?'descending':'ascending');
      sort(table,at,down);
    }
    head.addEventListener('click',turn);
    head.addEventListener('keydown',function(e){if(e.key==='Enter')turn();});
  });
  if(table.tBodies[0].rows.length>9&&box.id!=='cases'){
    var find=document.createElement('input');
    find.className='find';find.type='search';find.placeholder='show rows that contain\\u2026';
    find.addEventListener('input',function(){
      var words=find.value.toLowerCase().split(/\\s+/);
      Array.prototype.forEach.call(table.tBodies[0].rows,function(row){
        var text=row.textContent.toLowerCase();
        row.hidden=!words.every(function(w){return text.indexOf(w)>=0;});
      });
    });
    box.parentNode.insertBefore(find,box);
  }
});
var cases=document.querySelectorAll('#cases tbody tr'),dots={},chosen=document.querySelectorAll('.choices select');
document.querySelectorAll('circle[data-case]').forEach(function(dot){
  dots[dot.getAttribute('data-case')]=dot;
  dot.addEventListener('click',function(){
    cases.forEach(function(row){
      var mine=row.getAttribute('data-case')===dot.getAttribute('data-case');
      row.className=mine?'picked':'';
      if(mine){var box=document.getElementById('cases');box.scrollTop=row.offsetTop-120;}
    });
  });
});
function show(){
  var count=0,size=0,bias=0,off=[];
  cases.forEach(function(row){
    var fits=Array.prototype.every.call(chosen,function(s){
      return !s.value||row.getAttribute('data-'+s.getAttribute('data-f'))===s.value;});
    row.hidden=!fits;
    var dot=dots[row.getAttribute('data-case')];
    if(dot)dot.setAttribute('class',fits?'':'off');
    if(fits){var e=parseFloat(row.getAttribute('data-error'));count++;size+=Math.abs(e);bias+=e;off.push(Math.abs(e));}
  });
  off.sort(function(a,b){return a-b;});
  var half=Math.floor(count/2),middle=count?(count%2?off[half]:(off[half-1]+off[half])/2):0;
  var text=count+(count===1?' case':' cases');
  if(count)text+=': mean absolute error '+(100*size/count).toFixed(1)+' %, median '+(100*middle).toFixed(1)+
    ' %, bias '+(bias>0?'+':'')+(100*bias/count).toFixed(1)+' %';
  document.getElementById('shown').textContent=text+
    '. A dot names its run when pointed at; a click marks it in the table.';
}
chosen.forEach(function(s){s.addEventListener('change',show);});
var clear=document.getElementById('clear');
if(clear){clear.addEventListener('click',function(){chosen.forEach(function(s){s.value='';});show();});show();}
})();
"""
