package ui

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
)

// page is a tab with the page. Whatever goes wrong in it fails the test.
type page struct {
	t    *testing.T
	ctx  context.Context
	end  context.CancelFunc
	base string

	mu struct {
		sync.Mutex
		faults []string
	}
}

// openPage opens a view of a node in a tab of its own.
func openPage(t *testing.T, base, view string) *page {
	t.Helper()
	p := newPage(t, base)
	p.size(1280, 900, "light")
	p.open(view)
	return p
}

// newPage opens an empty tab.
func newPage(t *testing.T, base string) *page {
	t.Helper()
	p := &page{t: t, base: base}
	p.ctx, p.end = chromedp.NewContext(browser, chromedp.WithListener(p.listen))
	p.do() // the first use opens the tab, without a deadline that would close it again
	t.Cleanup(p.close)
	return p
}

// open loads the page.
func (p *page) open(view string) {
	p.t.Helper()
	p.do(chromedp.Navigate(p.base+"/ui/"+view), chromedp.WaitReady(chromedp.CSS("h1")))
}

// close closes the tab, and reports what went wrong in it.
func (p *page) close() {
	if p.t.Failed() {
		p.t.Logf("the page says:\n%.700s", p.text("main"))
	}
	p.end()
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, f := range p.mu.faults {
		p.t.Errorf("in the page: %s", f)
	}
}

// listen notes exceptions, and violations of the policy. Answers with an error status
// are logged by the browser too, and are part of many tests.
func (p *page) listen(event any) {
	fault := ""
	switch e := event.(type) {
	case *runtime.EventExceptionThrown:
		fault = fmt.Sprintf("%s at %s:%d: %+v", e.ExceptionDetails.Text, e.ExceptionDetails.URL, e.ExceptionDetails.LineNumber, e.ExceptionDetails.Exception)
	case *runtime.EventConsoleAPICalled:
		if e.Type == runtime.ConsoleAPICalledTypeError {
			fault = fmt.Sprintf("console: %s", e.Args[0].Description)
		}
	case *log.EventEntryAdded:
		if e.Entry.Level == log.EntryLevelError && e.Entry.Source != log.EntrySourceNetwork {
			fault = fmt.Sprintf("%s: %s", e.Entry.Source, e.Entry.Text)
		}
	}
	if fault != "" {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.mu.faults = append(p.mu.faults, fault)
	}
}

func (p *page) do(steps ...chromedp.Action[chromedp.Void]) {
	p.t.Helper()
	if len(steps) == 0 {
		if err := chromedp.Do(p.ctx); err != nil {
			p.t.Fatal(err)
		}
		return
	}
	ctx, cancel := context.WithTimeout(p.ctx, patience)
	defer cancel()
	if err := chromedp.Do(ctx, steps...); err != nil {
		p.t.Fatal(err)
	}
}

// call sends a command to the tab.
func call[P, R any](p *page, c cdp.Command[P, R], params P) R {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.ctx, patience)
	defer cancel()
	r, err := chromedp.Call(ctx, c, params)
	if err != nil {
		p.t.Fatal(err)
	}
	return r
}

// size sets the window and the color scheme.
func (p *page) size(width, height int64, scheme string) {
	p.t.Helper()
	call(p, emulation.SetDeviceMetricsOverride, emulation.SetDeviceMetricsOverrideParams{Width: width, Height: height, DeviceScaleFactor: 1, Mobile: width < 700})
	call(p, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}}})
}

// go to another view.
func (p *page) view(hash string) {
	p.t.Helper()
	p.run(fmt.Sprintf("location.hash = %q", hash))
}

// run evaluates an expression for its effect.
func (p *page) run(expression string) {
	p.t.Helper()
	get[bool](p, "(async () => { "+expression+"; return true })()")
}

// get evaluates an expression.
func get[T any](p *page, expression string) T {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.ctx, patience)
	defer cancel()
	out, err := chromedp.Run(ctx, chromedp.Evaluate[T](expression, chromedp.EvalAwaitPromise))
	if err != nil {
		p.t.Fatalf("%s: %v", expression, err)
	}
	return out
}

// wait returns once an expression is true.
func (p *page) wait(expression string) {
	p.t.Helper()
	until(p.t, expression, func() bool { return get[bool](p, "!!("+expression+")") })
}

// text returns what is visible of an element, for a report.
func (p *page) text(selector string) string {
	text, err := chromedp.Run(p.ctx, chromedp.Evaluate[string](fmt.Sprintf("document.querySelector(%q)?.innerText ?? ''", selector)))
	if err != nil {
		return err.Error()
	}
	return text
}

// see waits until an element has a text.
func (p *page) see(selector string, parts ...string) {
	p.t.Helper()
	for _, part := range parts {
		p.wait(fmt.Sprintf("document.querySelector(%q)?.innerText.includes(%q)", selector, part))
	}
}

// named is an XPath for controls with a visible text or label.
func named(name string) string {
	q := fmt.Sprintf("%q", name)
	return fmt.Sprintf("//*[self::button or self::a][normalize-space(.)=%[1]s or @aria-label=%[1]s][not(ancestor-or-self::*[@hidden])]", q)
}

// click clicks a button or link with the mouse.
func (p *page) click(name string) {
	p.t.Helper()
	p.do(chromedp.ScrollIntoView(chromedp.Search(named(name))), chromedp.Click(chromedp.Search(named(name)), chromedp.NodeVisible))
}

// confirm clicks a button of the dialog and waits until it has closed.
func (p *page) confirm(name string) {
	p.t.Helper()
	p.press(name)
	p.wait("!document.querySelector('dialog')")
}

// press clicks a button of the dialog, which may stay.
func (p *page) press(name string) {
	p.t.Helper()
	p.do(chromedp.Click(chromedp.Search("//dialog"+named(name)), chromedp.NodeVisible))
}

// fill types into the control with a label, in place of what it has.
func (p *page) fill(label, text string) {
	p.t.Helper()
	p.run(fmt.Sprintf(`
		const label = [...document.querySelectorAll('label')].filter((l) => l.innerText.trim() === %q).at(-1);
		const el = label ? document.getElementById(label.htmlFor) ?? label.querySelector('input, select') : document.querySelector('[aria-label=' + JSON.stringify(%[1]q) + ']');
		el.focus(); el.select?.()`, label))
	p.keys(text)
}

// keys presses keys, one after another.
func (p *page) keys(keys ...string) {
	p.t.Helper()
	for _, k := range keys {
		p.do(chromedp.KeyEvent(k))
	}
}

// choose clicks an entry of the tree.
func (p *page) choose(name string) {
	p.t.Helper()
	path := fmt.Sprintf("//*[@role='treeitem']/div[span[@class='key' and normalize-space(.)=%q]]", name)
	p.do(chromedp.Click(chromedp.Search(path), chromedp.NodeVisible))
}

// tree returns the visible entries of the tree.
func (p *page) tree() []string {
	p.t.Helper()
	return strings.Split(get[string](p, `[...document.querySelectorAll('[role=treeitem]')].filter((e) => !e.closest('ul[hidden]')).map((e) => e.querySelector('.key').textContent).join('\n')`), "\n")
}

// nodes returns how many elements match.
func (p *page) nodes(selector string) int {
	p.t.Helper()
	return get[int](p, fmt.Sprintf("document.querySelectorAll(%q).length", selector))
}
