import json, pytest
from p2p.training import TrainConfig, train
from p2p.storage.filesystems import write_bytes, list_names, list_files
pytestmark = pytest.mark.usefixtures("ray_cluster")
def test_it(s3, make_pairs, tmp_path):
    for split,n in (("train",9),("val",3)):
        f = make_pairs(tmp_path/split, n, size=72)
        for p in f.iterdir(): write_bytes(s3.uri("pairs",split,p.name), p.read_bytes())
    small = dict(generator="unet_64", discriminator="patch_16", ngf=4, ndf=4, crop_size=64, batch_size=2, epochs=3, epochs_decay=0, precision="fp32", keep_checkpoints=1)
    c = TrainConfig(data=s3.uri("pairs"), output=s3.uri("run"), max_steps=7, **small)
    print(train(c)["steps"])
    c = TrainConfig(data=s3.uri("pairs"), output=s3.uri("run"), **small)
    s = train(c)
    print([f.path for f in list_files(s3.uri("run"))])
    c = TrainConfig(data=s3.uri("pairs"), output=s3.uri("run"), resume="never", **{**small, "ngf": 6, "epochs": 1})
    s = train(c); assert s["epochs"]==1
    print([f.path for f in list_files(s3.uri("run"))])
