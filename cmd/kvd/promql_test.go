package main

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// family is one metric as a node exports it.
type family struct {
	kind   string // COUNTER, GAUGE, HISTOGRAM, SUMMARY
	labels []string
	help   string
}

// catalog has the families by name.
type catalog map[string]family

// target is what Prometheus adds to every series.
var target = []string{"instance", "job"}

// find returns the family and the labels of a series by its name: the series of
// a histogram have suffixes, and its buckets have le.
func (c catalog) find(series string) (f family, bucket bool, err error) {
	if series == "up" {
		return family{kind: "GAUGE"}, false, nil
	}
	if f, ok := c[series]; ok {
		if f.kind == "HISTOGRAM" {
			return f, false, fmt.Errorf("%s is a histogram: it has _bucket, _sum and _count", series)
		}
		return f, false, nil
	}
	for _, suffix := range []string{"_bucket", "_sum", "_count"} {
		name, ok := strings.CutSuffix(series, suffix)
		if f, known := c[name]; ok && known && (f.kind == "HISTOGRAM" || f.kind == "SUMMARY" && suffix != "_bucket") {
			f.kind = "COUNTER"
			return f, suffix == "_bucket", nil
		}
	}
	return family{}, false, fmt.Errorf("no node exports %s", series)
}

var (
	promToken = regexp.MustCompile(`"[^"]*"|\[[^\]]*\]|[a-zA-Z_:][a-zA-Z0-9_:]*|[0-9.]+|=~|!~|!=|==|<=|>=|[-+*/%^(){},=<>]`)
	aggregate = []string{"sum", "min", "max", "avg", "count", "topk", "bottomk"}
	functions = []string{"histogram_quantile", "floor", "ceil", "vector", "clamp_min", "absent", "time"}
	ofRanges  = []string{"rate", "increase", "irate", "changes", "resets", "delta", "max_over_time", "last_over_time"}
	ofCounts  = []string{"rate", "increase", "irate", "resets"}
	modifiers = []string{"by", "without", "on", "ignoring", "group_left", "group_right"}
	operators = []string{"and", "or", "unless", "bool", "offset"}
)

// promCheck reads one expression of PromQL. It knows the part of the language
// that our rules and panels use, and reports anything else.
type promCheck struct {
	catalog  catalog
	tokens   []string
	at       int
	open     []string // the functions whose parentheses are open; "" for plain ones
	grouped  []string // labels in by() and the like
	labels   []string // of the series, le of buckets included
	buckets  bool
	problems []string
}

func (c *promCheck) complain(format string, args ...any) {
	c.problems = append(c.problems, fmt.Sprintf(format, args...))
}

func (c *promCheck) peek() string {
	if c.at < len(c.tokens) {
		return c.tokens[c.at]
	}
	return ""
}

func (c *promCheck) next() string {
	t := c.peek()
	c.at++
	return t
}

// checkPromQL returns the mistakes in an expression, and the labels that its
// series can have.
func checkPromQL(cat catalog, expr string) (problems, labels []string) {
	if rest := strings.TrimSpace(promToken.ReplaceAllString(expr, "")); rest != "" {
		return []string{fmt.Sprintf("unreadable: %q", rest)}, nil
	}
	c := &promCheck{catalog: cat, tokens: promToken.FindAllString(expr, -1)}
	for c.at < len(c.tokens) {
		c.token(c.next())
	}
	if len(c.open) > 0 {
		c.complain("a parenthesis is not closed")
	}
	known := append(slices.Clone(c.labels), target...)
	for _, l := range c.grouped {
		if !slices.Contains(known, l) {
			c.complain("no series of the expression has the label %s", l)
		}
	}
	if c.buckets && !slices.Contains(c.grouped, "le") {
		c.complain("the buckets are summed without le")
	}
	return c.problems, known
}

func (c *promCheck) token(t string) {
	word := t[0] == '_' || t[0] >= 'a' && t[0] <= 'z' || t[0] >= 'A' && t[0] <= 'Z'
	switch {
	case t == "(":
		c.open = append(c.open, "")
	case t == ")" && len(c.open) == 0:
		c.complain("a parenthesis too many is closed")
	case t == ")":
		c.open = c.open[:len(c.open)-1]
	case !word || slices.Contains(operators, t):
	case slices.Contains(modifiers, t):
		c.grouped = append(c.grouped, c.list()...)
	case slices.Contains(aggregate, t):
		if slices.Contains(modifiers, c.peek()) {
			c.next()
			c.grouped = append(c.grouped, c.list()...)
		}
		c.call(t)
	case c.peek() == "(":
		if !slices.Contains(functions, t) && !slices.Contains(ofRanges, t) {
			c.complain("unknown function %s", t)
		}
		c.call(t)
	default:
		c.series(t)
	}
}

func (c *promCheck) call(name string) {
	if c.next() != "(" {
		c.complain("%s without a parenthesis", name)
	}
	c.open = append(c.open, name)
}

// list reads the labels in parentheses.
func (c *promCheck) list() (labels []string) {
	if c.next() != "(" {
		c.complain("a list of labels is missing")
	}
	for c.at < len(c.tokens) {
		switch t := c.next(); t {
		case ")":
			return labels
		case ",":
		default:
			labels = append(labels, t)
		}
	}
	return labels
}

// series reads a name with its matchers and its range.
func (c *promCheck) series(name string) {
	f, bucket, err := c.catalog.find(name)
	if err != nil {
		c.complain("%v", err)
	}
	labels := slices.Clone(f.labels)
	if bucket {
		labels = append(labels, "le")
		c.buckets = true
	}
	c.labels = append(c.labels, labels...)
	if c.peek() == "{" {
		c.next()
		c.matchers(name, append(labels, target...))
	}
	inner := ""
	if len(c.open) > 0 {
		inner = c.open[len(c.open)-1]
	}
	ranged := strings.HasPrefix(c.peek(), "[")
	if ranged {
		c.next()
	}
	if ranged != slices.Contains(ofRanges, inner) {
		c.complain("%s: a range belongs into a function of ranges, and only there", name)
	}
	if counts := slices.Contains(ofCounts, inner); err == nil && counts != (f.kind == "COUNTER") {
		c.complain("%s is a %s inside of %q", name, strings.ToLower(f.kind), inner)
	}
	if quantile := slices.Contains(c.open, "histogram_quantile"); quantile != bucket {
		c.complain("%s: buckets belong into histogram_quantile, and only they", name)
	}
}

func (c *promCheck) matchers(name string, labels []string) {
	for c.at < len(c.tokens) {
		switch t := c.next(); {
		case t == "}":
			return
		case t == ",":
		default:
			if !slices.Contains(labels, t) {
				c.complain("%s has no label %s", name, t)
			}
			if op := c.next(); !slices.Contains([]string{"=", "!=", "=~", "!~"}, op) {
				c.complain("%s: %q compares no label", name, op)
			}
			if v := c.next(); !strings.HasPrefix(v, `"`) {
				c.complain("%s: the value of %s is not in quotes", name, t)
			}
		}
	}
	c.complain("%s: the matchers are not closed", name)
}

// The check finds the mistakes that it is meant to find.
func TestPromQLCheck(t *testing.T) {
	cat := catalog{
		"up_total": {kind: "COUNTER", labels: []string{"code"}},
		"temp":     {kind: "GAUGE"},
		"took":     {kind: "HISTOGRAM", labels: []string{"route"}},
	}
	for expr, want := range map[string]string{
		`sum by (code) (rate(up_total{code=~"5..",job="x"}[5m])) > 1`:          "",
		`histogram_quantile(0.99, sum by (route, le) (rate(took_bucket[5m])))`: "",
		`temp / (temp > 0) < 0.1 and up == 1`:                                  "",
		`rate(took_sum[5m]) / rate(took_count[5m])`:                            "",
		`rate(uptotal[5m])`:                           "no node exports uptotal",
		`took > 1`:                                    "is a histogram",
		`rate(took_total[5m])`:                        "no node exports took_total",
		`rate(temp_count[5m])`:                        "no node exports temp_count",
		`rate(up_total{status="1"}[5m])`:              "no label status",
		`sum by (route) (rate(up_total[5m]))`:         "the label route",
		`rate(temp[5m])`:                              "temp is a gauge",
		`up_total > 1`:                                "up_total is a counter",
		`rate(up_total)`:                              "a range belongs",
		`temp[5m]`:                                    "a range belongs",
		`histogram_quantile(0.9, rate(took_sum[5m]))`: "only they",
		`histogram_quantile(0.9, sum by (route) (rate(took_bucket[5m])))`: "without le",
		`ratio(up_total[5m])`: "unknown function ratio",
		`sum(temp`:            "not closed",
		`temp)`:               "too many",
		`temp{job=x}`:         "not in quotes",
	} {
		problems, _ := checkPromQL(cat, expr)
		if got := strings.Join(problems, "; "); want == "" && got != "" || !strings.Contains(got, want) {
			t.Errorf("%s: %q, want %q", expr, got, want)
		}
	}
}
