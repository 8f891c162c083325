package httpapi

import (
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/kvd-io/kvd/internal/httpapi/param"
)

type openAPIDoc struct {
	Paths      map[string]map[string]yaml.Node
	Components map[string]map[string]yaml.Node
}

type openAPIParam struct {
	Ref  string `yaml:"$ref"`
	Name string
	In   string
}

type openAPIOperation struct {
	OperationID string `yaml:"operationId"`
	Parameters  []openAPIParam
	Responses   map[string]yaml.Node
}

func loadOpenAPI(t *testing.T) *openAPIDoc {
	t.Helper()
	var doc openAPIDoc
	if err := yaml.Unmarshal(openAPI, &doc); err != nil {
		t.Fatal(err)
	}
	return &doc
}

// queryParams returns the names of an operation's query parameters, sorted.
func (d *openAPIDoc) queryParams(t *testing.T, op *openAPIOperation) []string {
	t.Helper()
	names := []string{}
	for _, p := range op.Parameters {
		if name, ok := strings.CutPrefix(p.Ref, "#/components/parameters/"); ok {
			node, ok := d.Components["parameters"][name]
			if !ok {
				t.Fatalf("%s is not defined", p.Ref)
			}
			if err := node.Decode(&p); err != nil {
				t.Fatal(err)
			}
		}
		if p.In == "query" {
			names = append(names, p.Name)
		}
	}
	slices.Sort(names)
	return names
}

// The document and the route table have the same routes, methods and query parameters.
func TestOpenAPIAgreesWithTheRoutes(t *testing.T) {
	doc := loadOpenAPI(t)
	var described, routed []string
	for _, rt := range routeTable(true, false) {
		routed = append(routed, rt.pattern)
		operations := doc.Paths[rt.pattern]
		var verbs []string
		for verb := range operations {
			if verb != "parameters" {
				verbs = append(verbs, strings.ToUpper(verb))
			}
		}
		var methods []string
		for _, m := range rt.methods {
			methods = append(methods, m.name)
			compareParams(t, doc, rt, &m)
		}
		slices.Sort(verbs)
		slices.Sort(methods)
		if !slices.Equal(verbs, methods) {
			t.Errorf("%s: the document has %v, the route table %v", rt.pattern, verbs, methods)
		}
	}
	described = slices.Sorted(maps.Keys(doc.Paths))
	slices.Sort(routed)
	if !slices.Equal(described, routed) {
		t.Errorf("document    %v\nroute table %v", described, routed)
	}
}

func compareParams(t *testing.T, doc *openAPIDoc, rt *route, m *method) {
	t.Helper()
	node := doc.Paths[rt.pattern][strings.ToLower(m.name)]
	var op openAPIOperation
	if err := node.Decode(&op); err != nil {
		t.Errorf("%s %s: %v", m.name, rt.pattern, err)
		return
	}
	want := with(m.params, param.Everywhere)
	if m.anyQuery {
		want = []string{}
	}
	slices.Sort(want)
	if got := doc.queryParams(t, &op); !slices.Equal(got, want) {
		t.Errorf("%s %s: the document has parameters %v, the route table %v", m.name, rt.pattern, got, want)
	}
	if op.OperationID == "" || op.Responses["default"].Kind == 0 {
		t.Errorf("%s %s: no operationId or no default response", m.name, rt.pattern)
	}
}

func TestOpenAPIReferencesResolve(t *testing.T) {
	doc := loadOpenAPI(t)
	var root yaml.Node
	if err := yaml.Unmarshal(openAPI, &root); err != nil {
		t.Fatal(err)
	}
	checked := 0
	var walk func(*yaml.Node)
	walk = func(n *yaml.Node) {
		for i, c := range n.Content {
			if n.Kind == yaml.MappingNode && i%2 == 1 && n.Content[i-1].Value == "$ref" {
				parts := strings.Split(strings.TrimPrefix(c.Value, "#/components/"), "/")
				if _, ok := doc.Components[parts[0]][parts[1]]; !ok {
					t.Errorf("line %d: %s does not exist", c.Line, c.Value)
				}
				checked++
			}
			walk(c)
		}
	}
	walk(&root)
	if checked < 50 {
		t.Errorf("only %d references were found", checked)
	}
}

func TestOperationIDsAreUnique(t *testing.T) {
	seen := map[string]string{}
	for path, operations := range loadOpenAPI(t).Paths {
		for verb, node := range operations {
			var op openAPIOperation
			if verb == "parameters" || node.Decode(&op) != nil {
				continue
			}
			if other, ok := seen[op.OperationID]; ok {
				t.Errorf("%s is the id of %s and of %s %s", op.OperationID, other, verb, path)
			}
			seen[op.OperationID] = verb + " " + path
		}
	}
}

// The document at the root of the repository is the one that is served.
func TestRootOpenAPIIsThisOne(t *testing.T) {
	root, err := os.ReadFile("../../openapi.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if string(root) != string(openAPI) {
		t.Error("openapi.yaml at the root differs from the one that is served")
	}
}
