// FastfgsslResize: a region of each image at one size, antialiased, as a DALI operator on the CPU.

#include <cmath>
#include <string>
#include <vector>

#include "dali/pipeline/operator/arg_helper.h"
#include "dali/pipeline/operator/operator.h"

#include "resize.h"

namespace fastfgssl {

class Resize : public dali::Operator<dali::CPUBackend> {
 public:
  explicit Resize(const dali::OpSpec &spec)
      : dali::Operator<dali::CPUBackend>(spec),
        size_(spec.GetArgument<int>("size")),
        roi_start_("roi_start", spec),
        roi_end_("roi_end", spec) {
    DALI_ENFORCE(size_ >= 1, dali::make_string("size: must be at least 1, got ", size_));
    const auto interpolation = spec.GetArgument<std::string>("interpolation");
    DALI_ENFORCE(interpolation == "linear" || interpolation == "cubic",
                 dali::make_string("interpolation: must be linear or cubic, got ", interpolation));
    interpolation_ = interpolation == "cubic" ? Interpolation::kCubic : Interpolation::kLinear;
  }

  bool SetupImpl(std::vector<dali::OutputDesc> &outputs, const dali::Workspace &ws) override {
    const auto &images = ws.Input<dali::CPUBackend>(0);
    const auto &shapes = images.shape();
    const int batch = images.num_samples();
    DALI_ENFORCE(images.type() == DALI_UINT8 || images.type() == DALI_UINT16,
                 dali::make_string("images: must be UINT8 or UINT16, got ", images.type()));
    DALI_ENFORCE(shapes.sample_dim() == 3, "images: must be height x width x channels");
    dali::TensorListShape<> resized(batch, 3);
    regions_.resize(batch);
    for (int i = 0; i < batch; i++) {
      const auto shape = shapes.tensor_shape_span(i);
      DALI_ENFORCE(shape[0] > 0 && shape[1] > 0 && shape[2] > 0, dali::make_string("images: sample ", i, " is empty"));
      regions_[i] = {0, 0, static_cast<int>(shape[0]), static_cast<int>(shape[1])};
      resized.set_tensor_shape(i, dali::TensorShape<>{size_, size_, shape[2]});
    }
    ReadRegions(ws, batch);
    outputs.assign(1, dali::OutputDesc{resized, images.type()});
    return true;
  }

  void RunImpl(dali::Workspace &ws) override {
    const auto &images = ws.Input<dali::CPUBackend>(0);
    auto &resized = ws.Output<dali::CPUBackend>(0);
    resized.SetLayout("HWC");
    auto run = [&](int i, int thread, auto in) {
      using In = decltype(in);
      const auto shape = images.shape().tensor_shape_span(i);
      resizers_[thread].Run(static_cast<const In *>(images.raw_tensor(i)), static_cast<int>(shape[1]),
                            static_cast<int>(shape[2]), regions_[i], interpolation_, size_, size_,
                            static_cast<In *>(resized.raw_mutable_tensor(i)));
    };
    auto &threads = ws.GetThreadPool();
    resizers_.resize(threads.NumThreads());
    for (int i = 0; i < images.num_samples(); i++) {
      threads.AddWork(
          [&, i](int thread) { images.type() == DALI_UINT8 ? run(i, thread, uint8_t{}) : run(i, thread, uint16_t{}); },
          images.shape().tensor_size(i));  // the largest first
    }
    threads.RunAll();
  }

 private:
  void ReadRegions(const dali::Workspace &ws, int batch) {
    if (!roi_start_.HasExplicitValue() && !roi_end_.HasExplicitValue()) return;
    const auto two = dali::uniform_list_shape(batch, dali::TensorShape<1>{2});
    for (auto *corner : {&roi_start_, &roi_end_}) {
      DALI_ENFORCE(corner->HasExplicitValue(), "roi_start, roi_end: both or neither must be given");
      corner->Acquire(spec_, ws, batch, two);
    }
    for (int i = 0; i < batch; i++) {
      const float *start = roi_start_[i].data, *end = roi_end_[i].data;
      const Region whole = regions_[i];
      // what is no number or beyond any image becomes -1, which no region holds
      const auto round = [](float x) { return std::abs(x) < 1e9f ? static_cast<int>(std::lround(x)) : -1; };
      regions_[i] = {round(start[0]), round(start[1]), round(end[0]), round(end[1])};
      const Region &r = regions_[i];
      DALI_ENFORCE(0 <= r.y0 && r.y0 < r.y1 && r.y1 <= whole.y1 && 0 <= r.x0 && r.x0 < r.x1 && r.x1 <= whole.x1,
                   dali::make_string("roi_start, roi_end: sample ", i, ": ", r.y0, ", ", r.x0, " to ", r.y1, ", ", r.x1,
                                     " is no region of an image of ", whole.y1, " x ", whole.x1));
    }
  }

  int size_;
  Interpolation interpolation_;
  dali::ArgValue<float, 1> roi_start_, roi_end_;
  std::vector<Region> regions_;
  std::vector<Resizer> resizers_;  // one a thread
};

}  // namespace fastfgssl

DALI_SCHEMA(FastfgsslResize)
    .DocStr("Resizes images, or a region of each, to a square, antialiased as Pillow and torchvision do.\n\n"
            "Input and output: HWC, uint8 or uint16.")
    .NumInput(1)
    .NumOutput(1)
    .InputLayout(0, {"HWC"})
    .AddArg("size", "Side of the output in pixels.", DALI_INT32)
    .AddOptionalArg("interpolation", "linear or cubic.", std::string("linear"))
    .AddOptionalArg("roi_start", "First corner of the region, y and x in pixels.", std::vector<float>{}, true)
    .AddOptionalArg("roi_end", "Its end, exclusive; whole pixels.", std::vector<float>{}, true);

DALI_REGISTER_OPERATOR(FastfgsslResize, fastfgssl::Resize, dali::CPU);
