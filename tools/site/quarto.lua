-- What Quarto's Markdown has and pandoc's writers do not: callouts, tabsets, `fig-alt`; and boxes that scroll sideways.
local html = FORMAT:match 'html' ~= nil
local kinds = {note = 'Note', tip = 'Tip', important = 'Important', caution = 'Caution', warning = 'Warning'}

local function raw(text) return pandoc.RawBlock('html', text) end

local function callout_title(div, kind)
  local first = div.content[1]
  local written = div.attributes.title
  if written then return pandoc.utils.blocks_to_inlines(pandoc.read(written, 'markdown').blocks) end
  if not (first and first.t == 'Header') then return nil end
  div.content:remove(1)
  return first.content
end

local function alert(div, kind, title)   -- GitHub's form of a callout
  local mark, first = pandoc.RawInline('gfm', '[!' .. kind:upper() .. ']'), div.content[1]
  local inlines = pandoc.Inlines {mark, pandoc.SoftBreak()}
  if title then
    inlines:insert(pandoc.Strong(title))
  elseif first and first.t == 'Para' then
    inlines:extend(div.content:remove(1).content)
  end
  return pandoc.BlockQuote(pandoc.Blocks {pandoc.Para(inlines)} .. div.content)
end

local function callout(div, kind)
  local title = callout_title(div, kind)
  if not html then return alert(div, kind, title) end
  local class = 'class="callout callout-' .. kind .. '"'
  local title_box = pandoc.Div(pandoc.Plain(title or kinds[kind]), {class = 'callout-title'})
  local body = pandoc.Div(div.content, {class = 'callout-body'})
  if not div.attributes.collapse then
    return {raw('<div role="note" ' .. class .. '>'), title_box, body, raw '</div>'}
  end
  local open = div.attributes.collapse == 'false' and ' open' or ''
  return {raw('<details ' .. class .. open .. '><summary>'), title_box, raw '</summary>', body, raw '</details>'}
end

local function plain_tabs(div)
  local function bold(header) return pandoc.Div(pandoc.Plain(pandoc.Strong(header.content)), {class = 'tab-title'}) end
  return div:walk {Header = bold}
end

function Div(div)
  for kind in pairs(kinds) do
    if div.classes:includes('callout-' .. kind) then return callout(div, kind) end
  end
  if div.classes:includes 'panel-tabset' then return plain_tabs(div) end
end

function Image(image)
  image.attributes.alt = image.attributes.alt or image.attributes['fig-alt']
  image.attributes['fig-alt'] = nil
  if not html and image.attributes.height then image.attributes.height = nil end
  return image
end

function Math(math)
  if html and math.mathtype == 'DisplayMath' then return pandoc.Span(math, {class = 'math-scroll'}) end
end

function Table(table)   -- the browser knows better than the dashes of a pipe table how wide a column must be
  table.colspecs = table.colspecs:map(function(spec) return {spec[1], nil} end)
  if html then return pandoc.Div(table, {class = 'table-scroll'}) end
end

local function refuse_tex(el)
  if el.format:match 'tex' then pandoc.log.warn('TeX outside $…$ would be dropped: ' .. el.text:sub(1, 60)) end
end

function RawInline(el) refuse_tex(el) end

function RawBlock(el)
  refuse_tex(el)
  if not html and el.format == 'html' and el.text:match '<table' then return pandoc.read(el.text, 'html').blocks end
end

-- Markdown that is read as text (the README and the `.html.md` twins) keeps no boxes and no attributes.
local function plain_figure(figure)
  local image = figure.content[1].content[1]
  local caption = pandoc.utils.blocks_to_inlines(figure.caption.long)
  caption = caption:walk {Emph = function(emph) return emph.content end}   -- emphasis does not nest in Markdown
  return {pandoc.Para(image), pandoc.Para(pandoc.Emph(caption))}
end

local function plain_code(code)
  local function wanted(class) return class ~= 'cell-code' and class ~= 'output' end
  code.attr = pandoc.Attr('', code.classes:filter(wanted))
  return code
end

local strip = {
  Figure = plain_figure,
  Div = function(div) return div.content end,
  Span = function(span) return span.content end,
  Link = function(link) link.attr = pandoc.Attr(); return link end,
  Header = function(header) header.attr = pandoc.Attr(); return header end,
  CodeBlock = plain_code,
}

function Pandoc(doc)
  if not html then return doc:walk(strip) end
end
