// Package main is a function that makes a picture smaller: PNG, JPEG or GIF in, PNG of at most 128 by 128 points out.
//
// JSON such as {"request": 42} has it draw a picture of its own, and answer with what came of it.
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"image"
	"image/color"
	_ "image/gif"
	_ "image/jpeg"
	"image/png"
)

const (
	side      = 128
	maxPoints = 64 << 20
)

// Handle answers one request.
func Handle(payload []byte) ([]byte, error) {
	var event map[string]any
	if json.Unmarshal(payload, &event) == nil && event != nil {
		number, _ := event["request"].(float64)
		small := scale(draw(int(number)), side)
		event["width"], event["height"], event["grey"] = small.Bounds().Dx(), small.Bounds().Dy(), grey(small)
		return json.Marshal(event)
	}
	size, _, err := image.DecodeConfig(bytes.NewReader(payload))
	if err != nil {
		return nil, fmt.Errorf("this is not a picture: %w", err)
	}
	if size.Width < 1 || size.Height < 1 || size.Width > maxPoints/size.Height {
		return nil, fmt.Errorf("the picture has %d by %d points; at most %d are taken", size.Width, size.Height, maxPoints)
	}
	large, _, err := image.Decode(bytes.NewReader(payload))
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	err = png.Encode(&out, scale(large, side))
	return out.Bytes(), err
}

// scale makes a picture fit into a square, each point the mean of those that it stands for.
func scale(large image.Image, side int) *image.RGBA {
	from := large.Bounds()
	width, height := from.Dx(), from.Dy()
	if longer := max2(width, height); longer > side {
		width, height = max2(1, width*side/longer), max2(1, height*side/longer)
	}
	small := image.NewRGBA(image.Rect(0, 0, width, height))
	for y := 0; y < height; y++ {
		for x := 0; x < width; x++ {
			left, right := from.Min.X+x*from.Dx()/width, from.Min.X+(x+1)*from.Dx()/width
			top, bottom := from.Min.Y+y*from.Dy()/height, from.Min.Y+(y+1)*from.Dy()/height
			var red, green, blue, alpha, count uint64
			for v := top; v < bottom; v++ {
				for u := left; u < right; u++ {
					r, g, b, a := large.At(u, v).RGBA()
					red, green, blue, alpha, count = red+uint64(r), green+uint64(g), blue+uint64(b), alpha+uint64(a), count+1
				}
			}
			small.SetRGBA(x, y, color.RGBA{uint8(red / count >> 8), uint8(green / count >> 8), uint8(blue / count >> 8), uint8(alpha / count >> 8)})
		}
	}
	return small
}

// draw makes a picture of 640 by 480 points that depends on the number.
func draw(number int) image.Image {
	picture := image.NewRGBA(image.Rect(0, 0, 640, 480))
	for y := 0; y < 480; y++ {
		for x := 0; x < 640; x++ {
			picture.SetRGBA(x, y, color.RGBA{uint8(x + number), uint8(y * number), uint8(x ^ y), 255})
		}
	}
	return picture
}

// grey is the mean brightness, 0 to 255.
func grey(picture image.Image) int {
	bounds := picture.Bounds()
	sum := 0
	for y := bounds.Min.Y; y < bounds.Max.Y; y++ {
		for x := bounds.Min.X; x < bounds.Max.X; x++ {
			sum += int(color.GrayModel.Convert(picture.At(x, y)).(color.Gray).Y)
		}
	}
	return sum / (bounds.Dx() * bounds.Dy())
}

func max2(a, b int) int {
	if a > b {
		return a
	}
	return b
}
