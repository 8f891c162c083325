package audit

import (
	"os"
	"reflect"
	"strings"
	"testing"
)

// TestFieldsAreDocumented: docs/audit.md has exactly the fields of a line.
func TestFieldsAreDocumented(t *testing.T) {
	text, err := os.ReadFile("../../docs/audit.md")
	if err != nil {
		t.Fatal(err)
	}
	documented := map[string]bool{}
	for row := range strings.Lines(string(text)) {
		if name, ok := strings.CutPrefix(row, "| `"); ok {
			name, _, _ = strings.Cut(name, "`")
			documented[name] = true
		}
	}
	for f := range reflect.TypeFor[line]().Fields() {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if !documented[name] {
			t.Errorf("docs/audit.md does not describe %s", name)
		}
		delete(documented, name)
	}
	if len(documented) > 0 {
		t.Errorf("docs/audit.md describes %v, which no line has", documented)
	}
	for op, action := range actions {
		if !strings.Contains(string(text), "`"+action+"`") {
			t.Errorf("docs/audit.md does not name the action %s of operation %d", action, op)
		}
	}
}
